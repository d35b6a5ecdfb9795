package android.app;

import android.content.Context;
import android.content.Intent;
import android.os.Bundle;
import android.view.View;

public class Activity extends Context {
    protected void onCreate(Bundle saved) {}
    protected void onStop() {}
    protected void onNewIntent(Intent intent) {}
    public Intent getIntent() { return null; }
    public void setContentView(int layout) {}
    public <T extends View> T findViewById(int id) { return null; }
    public void setTitle(CharSequence title) {}
    public final void runOnUiThread(Runnable action) {}
}
